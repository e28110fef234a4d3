"""What ``greenroom``, the operators' command line, asks and changes."""
