"""Who may speak with this server, and how it shows who it is itself. Knows no gRPC."""
