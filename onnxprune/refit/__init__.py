"""Compensation: what is left of a network is refitted so that the outputs stay close."""
