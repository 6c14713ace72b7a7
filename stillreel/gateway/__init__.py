"""The part of Prefect's API that a rented host may use, for the time of its lease."""
