"""What arrives, as :class:`~hubmeter.batch.PointBatch`: one module per form of OTLP."""
