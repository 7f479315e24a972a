"""What the desk is, without Qt and without torch: conversations, how their answers came about, and storage."""
