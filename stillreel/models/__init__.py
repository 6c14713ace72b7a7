"""The models a client can choose; see docs/adding-a-model.md."""
