"""What a chip does, as parts that are known by name: those built in, and users'."""
