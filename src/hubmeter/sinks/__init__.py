"""Where sealed shards go: one module per destination, each with ``publish(shard)``."""
