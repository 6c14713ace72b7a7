"""Machines that are rented while there is work for them, and given back whatever happens."""
