"""What happened on this device: recorded, summed into windows, kept in the outbox until the server has it."""
