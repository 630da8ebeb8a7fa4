"""Images per second, times and shares."""
