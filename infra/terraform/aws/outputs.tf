locals {
  service_cidr = aws_eks_cluster.this.kubernetes_network_config[0].service_ipv4_cidr
}

output "kubeconfig_command" {
  description = "Writes the kubeconfig of the cluster."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${aws_eks_cluster.this.name}"
}

output "database_owner_url" {
  description = "The URL of the owner of the tables: ATTUNE_DATABASE__OWNER_URL."
  value       = "postgres://attune:${random_password.database_owner.result}@${aws_db_instance.this.endpoint}/attune?sslmode=require"
  sensitive   = true
}

output "database_endpoint" {
  description = "The database's host and port, for ATTUNE_DATABASE__URL. Create its role as docs/DEPLOYMENT.md says."
  value       = aws_db_instance.this.endpoint
}

output "object_store_access_key_id" {
  description = "ATTUNE_OBJECT_STORE__ACCESS_KEY_ID"
  value       = aws_iam_access_key.objects.id
}

output "object_store_secret_access_key" {
  description = "ATTUNE_OBJECT_STORE__SECRET_ACCESS_KEY"
  value       = aws_iam_access_key.objects.secret
  sensitive   = true
}

output "helm_values" {
  description = "Values of the chart infra/helm/attune for this cluster. The Secret attune-credentials is yours to create."
  value = yamlencode({
    secrets     = { existing = "attune-credentials" }
    objectStore = { region = var.region, bucket = aws_s3_bucket.this.id, path_style = false }
    runs = {
      offers = [{
        name          = var.run_nodes.instance_type
        memory_bytes  = 24 * 1024 * 1024 * 1024
        threads       = 7
        slots         = var.run_nodes.max
        node_selector = { "attune.dev/pool" = "runs" }
        tolerations   = [{ key = "attune.dev/runs", effect = "NoSchedule" }]
      }]
    }
    networkPolicy = {
      database      = { to = [for subnet in aws_subnet.private : { ipBlock = { cidr = subnet.cidr_block } }] }
      kubernetesApi = { to = [for cidr in [var.cidr, local.service_cidr] : { ipBlock = { cidr = cidr } }] }
    }
  })
}
