"""Jobs as the control side knows them: read from Prefect and storage, submitted, acted upon."""
