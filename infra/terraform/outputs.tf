output "settings" {
  description = "For the control side's environment."
  value = {
    S3_BUCKET                    = aws_s3_bucket.videos.bucket
    S3_REGION                    = var.region
    STILLREEL_EC2_REGION         = var.region
    STILLREEL_EC2_PROFILE        = aws_iam_instance_profile.host.name
    STILLREEL_EC2_SECURITY_GROUP = aws_security_group.host.id
  }
}

output "launch_template" {
  description = "aws ec2 run-instances --launch-template LaunchTemplateName=..."
  value       = aws_launch_template.single.name
}
