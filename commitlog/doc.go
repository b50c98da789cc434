// Package commitlog is a log of transactions in segment files: the default Log of a lifecycle.Host.
package commitlog
