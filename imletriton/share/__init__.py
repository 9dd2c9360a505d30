"""What people do with a trained model."""
