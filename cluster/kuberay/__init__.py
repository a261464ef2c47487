"""From a recipe and a profile of a cluster to Kubernetes manifests. Needs no Ray and no cluster to do so."""
