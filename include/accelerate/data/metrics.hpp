#pragma once

#include <accelerate/data/metric_accuracy.hpp>
#include <accelerate/data/metric_confusion.hpp>
#include <accelerate/data/metric_mean.hpp>
#include <accelerate/data/metric_perplexity.hpp>
