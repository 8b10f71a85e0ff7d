"""What changes after the data was prepared: a store of events, and the state that follows."""
