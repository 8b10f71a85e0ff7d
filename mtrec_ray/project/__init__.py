"""What a user writes: the project file as frozen, validated sections. Knows no torch and no Ray."""
