"""The HTTP and Unix-socket server for applications on the device. Nothing is imported here."""
