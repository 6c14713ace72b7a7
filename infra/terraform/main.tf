# What exists once and costs next to nothing by itself: the bucket, the role and the groups of GPU hosts,
# and a launch template for the one machine that is kept. Rented hosts come and go by `stillreel drain`,
# never by Terraform. docs/operations.md.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.80"
    }
  }
}

provider "aws" {
  region = var.region
}

# --- bucket ---------------------------------------------------------------------------------------

resource "aws_s3_bucket" "videos" {
  bucket = var.bucket
  tags   = local.tags
}

resource "aws_s3_bucket_public_access_block" "videos" {
  bucket                  = aws_s3_bucket.videos.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

# The same rules under the same names as `stillreel storage init` sets: whoever comes second finds
# nothing to change. Inputs and videos are the keeper's, which looks whether their jobs have ended.
resource "aws_s3_bucket_lifecycle_configuration" "videos" {
  bucket = aws_s3_bucket.videos.id

  dynamic "rule" {
    for_each = { for name, days in local.lifetimes : name => days if days > 0 }
    content {
      id     = "stillreel-${rule.key}"
      status = "Enabled"
      filter {
        prefix = "${rule.key}/"
      }
      expiration {
        days = rule.value
      }
    }
  }

  rule {
    id     = "stillreel-parts"
    status = "Enabled"
    filter {
      prefix = ""
    }
    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}

resource "aws_s3_bucket_cors_configuration" "videos" {
  bucket = aws_s3_bucket.videos.id
  cors_rule {
    id              = "stillreel-browsers"
    allowed_origins = var.upload_origins
    allowed_methods = ["GET", "HEAD", "PUT"]
    allowed_headers = ["content-type", "if-none-match", "range"]
    expose_headers  = ["ETag", "Content-Length", "Content-Range", "Accept-Ranges"]
    max_age_seconds = 3600
  }
}

# --- role of GPU hosts ------------------------------------------------------------------------------

resource "aws_iam_role" "host" {
  name = "${var.name}-host"
  tags = local.tags
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy" "bucket" {
  name = "bucket"
  role = aws_iam_role.host.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
        Resource = "${aws_s3_bucket.videos.arn}/*"
      },
      {
        Effect   = "Allow"
        Action   = ["s3:ListBucket"]
        Resource = aws_s3_bucket.videos.arn
      },
    ]
  })
}

# Session Manager instead of SSH: no port is open for it.
resource "aws_iam_role_policy_attachment" "session_manager" {
  role       = aws_iam_role.host.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "host" {
  name = "${var.name}-host"
  role = aws_iam_role.host.name
}

# --- groups -----------------------------------------------------------------------------------------

# Rented hosts ask, and are never asked: nothing comes in. STILLREEL_EC2_SECURITY_GROUP.
resource "aws_security_group" "host" {
  name        = "${var.name}-host"
  description = "GPU hosts: nothing in, everything out"
  vpc_id      = var.vpc_id
  tags        = local.tags

  egress {
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }
}

# The one machine that is kept serves its API on port 8000, to one range of addresses.
resource "aws_security_group" "single" {
  count       = var.api_from == "" ? 0 : 1
  name        = "${var.name}-single"
  description = "The API of the one machine, from one range of addresses"
  vpc_id      = var.vpc_id
  tags        = local.tags

  ingress {
    from_port   = 8000
    to_port     = 8000
    protocol    = "tcp"
    cidr_blocks = [var.api_from]
  }
}

# --- the one machine --------------------------------------------------------------------------------

resource "aws_launch_template" "single" {
  name          = "${var.name}-single"
  image_id      = var.ami
  instance_type = var.instance_type
  tags          = local.tags

  # It is stopped and started, so a power-off stops it; rented hosts are launched to terminate.
  instance_initiated_shutdown_behavior = "stop"

  iam_instance_profile {
    name = aws_iam_instance_profile.host.name
  }
  vpc_security_group_ids = concat(
    [aws_security_group.host.id], aws_security_group.single[*].id
  )
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  block_device_mappings {
    device_name = "/dev/sda1"
    ebs {
      volume_size           = 150
      volume_type           = "gp3"
      throughput            = 500
      encrypted             = true
      delete_on_termination = true
    }
  }
  tag_specifications {
    resource_type = "instance"
    tags          = local.tags
  }
  tag_specifications {
    resource_type = "volume"
    tags          = local.tags
  }
}
