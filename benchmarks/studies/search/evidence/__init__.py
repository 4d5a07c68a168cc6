"""What each part of a search is worth: a protocol of small searches and trainings, kept as they end, and its page."""
