"""What the keeper does beside requests, a module per chore; each is safe when two keepers act."""
