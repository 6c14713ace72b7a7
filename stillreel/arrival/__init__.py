"""What a rented host says it has made, looked through before anybody is told of it."""
