"""The fleet's brain: what runs where, is it healthy, ship it, take it back."""
