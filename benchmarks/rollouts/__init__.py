"""What U1, U2 and U3 share: the scenarios, and the rules of others."""
