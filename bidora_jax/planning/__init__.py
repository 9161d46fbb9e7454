"""What fits a device, by the compiler's count."""
