package lifecyclehttp

var HashSource = hashSource
