"""The OpenTelemetry Collector of the tests: what it is made of, and the program that makes it."""
