"""
OTLP from the network: HTTP and gRPC, to be journaled before it is acknowledged.

::

    doors            where, for whom, how much            credentials   token, TLS
    serving          Receiver: one thread, one loop       problems      what senders did wrong
      http_door      headers and answers of HTTP          connections   of it
      grpc_door      likewise of gRPC                     one_port      both on one port
        bodies       pieces into bodies, within limits    inflating     gzip, deflate, zstd
          intake     bytes to points, and delivered
            answers  what became of it
"""
