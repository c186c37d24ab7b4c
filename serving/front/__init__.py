"""What clients reach: gRPC, and HTTP for operators. Everything is checked, counted and bounded here, before Triton."""
