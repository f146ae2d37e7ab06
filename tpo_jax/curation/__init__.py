"""From videos to judged preference pairs, with answers of the model that is trained."""
