"""Real servers for tests: each is started by the test that needs it, on a free loopback port, in its own folder."""
