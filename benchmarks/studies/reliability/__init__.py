"""What repconv does with what goes wrong: damaged files, full disks, sudden ends."""
