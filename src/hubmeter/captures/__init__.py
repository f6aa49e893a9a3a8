"""
Files with telemetry, read as streams: what a Collector's file exporter writes, and OTLP/JSON.

::

    rotation       which files, in which order
    unpacking      gzip, zstd and UTF-16 undone, a piece at a time
    forms          what it is, by its first bytes, never by its name
    framing        lines; messages behind their lengths; what is broken costs itself
    wire           the few facts of protobuf that framing needs
    reading        records to batches of points
"""
