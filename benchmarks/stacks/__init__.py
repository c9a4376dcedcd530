"""The HTTP stacks that `benchmarks.http_stacks` compares, all around one handler."""
