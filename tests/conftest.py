from standin.fixtures import *  # noqa: F403
