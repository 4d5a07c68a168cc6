"""What the commands share: options, tables, records."""
