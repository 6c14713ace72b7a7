"""What `stillreel doctor` looks at: one module for each group of checks, all of them bounded."""
