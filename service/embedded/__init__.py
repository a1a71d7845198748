"""Embedded mode: everything in one folder, and every process a supervised child of one command."""
