resource "aws_db_subnet_group" "this" {
  name       = var.name
  subnet_ids = [for subnet in aws_subnet.private : subnet.id]
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL, from the nodes of the cluster"
  vpc_id      = aws_vpc.this.id

  ingress {
    description     = "PostgreSQL"
    from_port       = 5432
    to_port         = 5432
    protocol        = "tcp"
    security_groups = [aws_eks_cluster.this.vpc_config[0].cluster_security_group_id]
  }
}

# Letters and digits only: it becomes a part of a URL.
resource "random_password" "database_owner" {
  length  = 40
  special = false
}

resource "aws_db_parameter_group" "this" {
  name   = "${var.name}-postgres17"
  family = "postgres17"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }
}

resource "aws_db_instance" "this" {
  identifier              = var.name
  engine                  = "postgres"
  engine_version          = "17"
  instance_class          = var.database.instance_class
  allocated_storage       = var.database.storage_gib
  max_allocated_storage   = var.database.storage_gib * 4
  storage_type            = "gp3"
  storage_encrypted       = true
  multi_az                = var.database.multi_az
  db_name                 = "attune"
  username                = "attune"
  password                = random_password.database_owner.result
  parameter_group_name    = aws_db_parameter_group.this.name
  db_subnet_group_name    = aws_db_subnet_group.this.name
  vpc_security_group_ids  = [aws_security_group.database.id]
  backup_retention_period = var.database.backup_days
  copy_tags_to_snapshot   = true
  deletion_protection     = var.deletion_protection
  skip_final_snapshot     = !var.deletion_protection

  final_snapshot_identifier = "${var.name}-final"
}

resource "random_id" "bucket" {
  byte_length = 4
}

resource "aws_s3_bucket" "this" {
  bucket        = "${var.name}-${random_id.bucket.hex}"
  force_destroy = !var.deletion_protection
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket                  = aws_s3_bucket.this.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# A process that is killed during an upload leaves parts that no listing shows. The scheduler aborts such uploads, too; the
# rule also works while no scheduler runs.
resource "aws_s3_bucket_lifecycle_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    id     = "unfinished-uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}

# The programs sign with an access key: presigned URLs must stay valid for an hour, longer than a role's session may.
resource "aws_iam_user" "objects" {
  name = "${var.name}-objects"
}

data "aws_iam_policy_document" "objects" {
  statement {
    actions   = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.this.arn]
  }
  statement {
    actions = [
      "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
    ]
    resources = ["${aws_s3_bucket.this.arn}/*"]
  }
}

resource "aws_iam_user_policy" "objects" {
  name   = "bucket"
  user   = aws_iam_user.objects.name
  policy = data.aws_iam_policy_document.objects.json
}

resource "aws_iam_access_key" "objects" {
  user = aws_iam_user.objects.name
}
