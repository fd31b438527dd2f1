variable "name" {
  description = "The name of the installation, part of the names of all resources."
  type        = string
  default     = "attune"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}$", var.name))
    error_message = "Use 2 to 21 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "region" {
  description = "The AWS region."
  type        = string
}

variable "tags" {
  description = "Tags of all resources."
  type        = map(string)
  default     = {}
}

variable "cidr" {
  description = "The address range of the VPC, a /16."
  type        = string
  default     = "10.60.0.0/16"
}

variable "zones" {
  description = "The number of availability zones."
  type        = number
  default     = 2

  validation {
    condition     = var.zones >= 2 && var.zones <= 4
    error_message = "EKS and RDS need 2 zones; this example has addresses for 4."
  }
}

variable "api_server_cidrs" {
  description = "The addresses from which the API server of the cluster can be reached; none: only from inside the VPC."
  type        = list(string)
  default     = []
}

variable "kubernetes_version" {
  description = "The Kubernetes version of the cluster."
  type        = string
  default     = "1.35"
}

variable "platform_nodes" {
  description = "The nodes for the API, the scheduler and the cluster's own programs."
  type = object({
    instance_type = string
    min           = number
    max           = number
  })
  default = {
    instance_type = "m7i.large"
    min           = 2
    max           = 4
  }
}

variable "run_nodes" {
  description = "The nodes for trainers and replicas. min may be 0 only with a cluster autoscaler, which this example does not install."
  type = object({
    instance_type = string
    min           = number
    max           = number
    disk_gib      = number
  })
  default = {
    instance_type = "m7i.2xlarge"
    min           = 1
    max           = 4
    disk_gib      = 200
  }
}

variable "database" {
  description = "The database's instance class, its storage and how long backups are kept."
  type = object({
    instance_class = string
    storage_gib    = number
    backup_days    = number
    multi_az       = bool
  })
  default = {
    instance_class = "db.t4g.medium"
    storage_gib    = 50
    backup_days    = 14
    multi_az       = true
  }
}

variable "deletion_protection" {
  description = "Keeps the database and a bucket that is not empty from being destroyed."
  type        = bool
  default     = true
}
