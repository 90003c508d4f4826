"""What kernels share: the dropout's random bits and vectorised elementary functions."""
