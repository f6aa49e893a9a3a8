"""Where metrics come from: one module per source, each ends at ``pipeline.consume``."""
