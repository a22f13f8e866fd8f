"""The port to S3 and its minio adapter."""
