"""The vision encoder's engines: one interface, one file each."""
