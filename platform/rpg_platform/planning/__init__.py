"""What a sweep will cost before it starts: the time, the room on the cluster and the disk."""
