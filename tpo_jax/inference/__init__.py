"""A loaded model: answers, streams and scores."""
