"""Strategies that keep a population, and breed or draw the next one."""
