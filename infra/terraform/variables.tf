variable "region" {
  type    = string
  default = "us-east-1"
}

variable "name" {
  type        = string
  default     = "stillreel"
  description = "What the names of all of it begin with."
}

variable "bucket" {
  type        = string
  description = "S3_BUCKET; one bucket belongs to one installation."
}

variable "latents_days" {
  type        = number
  default     = 30
  description = "STILLREEL_LATENTS_DAYS; 0: for ever."
}

variable "results_days" {
  type        = number
  default     = 90
  description = "STILLREEL_RESULTS_DAYS; 0: for ever."
}

variable "upload_origins" {
  type        = list(string)
  default     = ["*"]
  description = "STILLREEL_UPLOAD_ORIGINS."
}

variable "vpc_id" {
  type        = string
  default     = null
  description = "Where the groups are; without one the default VPC."
}

variable "api_from" {
  type        = string
  default     = ""
  description = "The range of addresses that may reach the API of the one machine, e.g. 203.0.113.7/32; empty: nobody."

  validation {
    condition     = var.api_from == "" || (can(cidrhost(var.api_from, 0)) && var.api_from != "0.0.0.0/0")
    error_message = "Give one range like 203.0.113.7/32; the API speaks plain HTTP there, so not the whole world."
  }
}

variable "ami" {
  type        = string
  default     = "resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
  description = "Machine image with the NVIDIA driver; better resolve it once and give its id."
}

variable "instance_type" {
  type    = string
  default = "g5.xlarge"
}

locals {
  tags = { stillreel = var.name }
  lifetimes = {
    temp    = 1
    latents = var.latents_days
    results = var.results_days
  }
}
