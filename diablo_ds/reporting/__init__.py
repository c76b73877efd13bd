"""Runs seen from outside, by their folders alone: tables, plots and reports of one or many."""
