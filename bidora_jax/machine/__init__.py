"""Memory, the C library's allocator, caches of compiled programs, facts of the machine."""
